import pytest

from goldfish.jobs.evaluate import EvaluationJob
from goldfish.tools.files import FileError


@pytest.mark.parametrize("key", ["documents", "perplexity"])
def test_a_file_that_holds_no_documents_is_named_with_its_key(tmp_path, key):
    with pytest.raises(
        FileError, match=rf"^{key}={tmp_path}: not a folder .*; type {key}=FILE with a file of documents"
    ):
        EvaluationJob._read(None, key, tmp_path, None)
