"""Model repositories and data sets on the Hugging Face hub, at a pinned revision.

The endpoint is the library's ``HF_ENDPOINT``. The token is that of ``HF_TOKEN`` and never that of a login stored on the
machine, so that a study does not work for one person and fail for the next.
"""

import contextlib
import glob
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from llmstudy.errors import NetworkTrouble, StudyError
from llmstudy.progress import LogBar

AGAIN = "run again, what is there is kept"  # marks the reasons that may mend themselves
NO_CONNECTION = ("ConnectError", "ConnectTimeout", "ReadTimeout", "ReadError", "RemoteProtocolError", "ProxyError")
GATED = "gated: accept the licence on the repository's page and set HF_TOKEN to a token that may read it"
NOT_FOUND = "no such repository, or a private one; check owner/name, or set HF_TOKEN to a token that may read it"


def list_files(repo: str, revision: str) -> list[str]:
    """Return the paths of the files of a model repository (``owner/name``) at a commit (40 hex digits); raise
    StudyError: not found, gated, no network, hub out of service."""
    from huggingface_hub import HfApi

    with errors_named(where(repo, revision)):
        return HfApi(token=_token()).list_repo_files(repo, revision=revision)


def download(repo: str, revision: str, names: list[str], folder: Path) -> None:
    """Download files of a model repository into ``folder``, or what is missing of them.

    The library keeps its notes for resuming in ``.cache`` inside. Raise StudyError as ``list_files`` does, and for a
    truncated body.
    """
    from huggingface_hub import snapshot_download

    with errors_named(where(repo, revision)):
        snapshot_download(
            repo,
            revision=revision,
            local_dir=folder,
            # The library takes patterns, and a name may hold their characters.
            allow_patterns=list(map(glob.escape, names)),
            token=_token(),
            tqdm_class=None if sys.stderr.isatty() else LogBar,
        )
    # if the folder is not empty and the hub fails, the library returns the folder as if it were whole
    if missing := [name for name in names if not (folder / name).exists()]:
        raise NetworkTrouble(f"{where(repo, revision)}: the hub did not give {missing[0]}; {AGAIN}")


def where(repo: str, revision: str) -> str:
    """Return how messages name a repository at a commit."""
    return f"{repo}@{revision[:8]}"


def load_rows(repo: str, subset: str | None, split: str, revision: str, cache: Path):
    """Return the rows of one split of a data set, downloaded into ``cache`` and memory-mapped; raise StudyError as
    ``download`` does, and for an unknown subset or split."""
    import datasets

    with errors_named(where(repo, revision)):
        return datasets.load_dataset(repo, subset, split=split, revision=revision, cache_dir=str(cache), token=_token())


def _token() -> str | bool:
    return os.environ.get("HF_TOKEN") or False


@contextlib.contextmanager
def errors_named(where: str) -> Iterator[None]:
    """Turn errors of the libraries, which are pages long and nested, into a StudyError that says what to do."""
    # its retries are warnings in the log, beside the one line of this function
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        yield
    except StudyError:
        raise
    except Exception as error:
        if reason := next(filter(None, map(_reason, _chain(error))), None) or _reason_of_datasets(error):
            raise (NetworkTrouble if AGAIN in reason else StudyError)(f"{where}: {reason}") from error
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes; the libraries wrap the hub's answer in up to three layers."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str | None:
    """Return why the hub did not give the files, or None if this error does not say."""
    from huggingface_hub import constants, errors

    if isinstance(error, OSError) and str(error.filename or "").startswith(constants.HF_HOME):
        return f"HF_HOME: {constants.HF_HOME!r} cannot be used ({error.strerror}); name a folder that can be written to"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the hub is switched off by HF_HUB_OFFLINE; unset it, or fetch on a machine with network"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision; take the 40 hex digits of a commit from its history"
    if isinstance(error, errors.GatedRepoError):
        return GATED
    if isinstance(error, errors.RepositoryNotFoundError):
        return NOT_FOUND
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return _status(error.response.status_code)
    text = str(error)
    if "Consistency check failed" in text or "peer closed connection" in text or "IncompleteRead" in text:
        return f"the download was cut short; {AGAIN}"
    if type(error).__name__ in NO_CONNECTION:
        return f"no network, or the hub does not answer ({type(error).__name__}); check the connection and {AGAIN}"
    known = isinstance(error, ValueError) and ("BuilderConfig" in text or "Unknown split" in text)
    return " ".join(text.split()) if known else None


def _reason_of_datasets(error: BaseException) -> str | None:
    """Return the reason that ``datasets`` gives in words if it drops the hub's error."""
    text = str(error)
    if type(error).__name__ == "DatasetNotFoundError":
        return GATED if "gated" in text else NOT_FOUND
    if isinstance(error, ConnectionError) and "Couldn't reach" in text:
        return f"no network, or the hub does not answer; check the connection and {AGAIN}"
    return None


def _status(code: int) -> str:
    if code in (401, 403):
        return f"the hub refuses access (HTTP {code}); set HF_TOKEN to a token that may read this repository"
    if code == 404:
        return "the hub has no such file (HTTP 404); check the name and the revision"
    if code == 429 or code >= 500:
        return f"the hub is out of service or overloaded (HTTP {code}); wait and {AGAIN}"
    return f"the hub answered HTTP {code}"
