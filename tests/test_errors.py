import pickle

import pytest

from vtskip.errors import DataError, VideoError


@pytest.mark.parametrize("kind", [DataError, VideoError])
def test_a_message_can_be_written_whatever_it_quotes(kind):
    error = kind("a.json: clip '\ud800' of '\u00e4'", 3)
    assert error.args == ("a.json: clip '\\ud800' of '\u00e4'", 3)
    assert str(pickle.loads(pickle.dumps(error))).encode()
