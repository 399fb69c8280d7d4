"""The marker at the root of a store: the id of the installation whose files are in it.

Two installations on one store would each remove the other's files, which its own database does not know. A volume that
is not mounted leaves an empty folder, in which every file is lost. So the first process that finds the store empty
writes the marker, every other compares it, and a store with files and without a marker, or with another's, is left
alone: no file is stored, nothing is deleted, and an error says why.
"""

from heimdex_files.blocking import MARKER, MAX_MARKER_BYTES, BlockingFileStore
from heimdex_files.errors import AlreadyThere, ForeignStore
from heimdex_files.store import FileStore


def claim(store: BlockingFileStore, installation: str) -> None:
    """Check that the store is this installation's; an empty store becomes it. Afterwards the store checks it by itself.

    installation: the id of the database and of the stream HEIMDEX_JOBS. Call it again for as long as it raises, and
    after a ForeignStore of another call: a store that was emptied is then marked again.

    Raises ForeignStore, Unavailable.
    """
    if not 1 <= len(installation.encode()) <= MAX_MARKER_BYTES:
        raise ValueError("an installation's id has 1 to 1,000 bytes")
    marker = store.marker()
    if marker is None:
        # Where it is not empty, another process may have claimed it between the two questions.
        marker = _mark(store, installation) if store.is_empty() else store.marker()
    name = f"{store.name[0].upper()}{store.name[1:]}"
    if marker is None:
        raise ForeignStore(
            f"{name} is not empty, and has no marker of an installation: nothing is stored or deleted in it. "
            f"Give HEIMDEX_FILES_URL an empty place, or restore the marker {MARKER!r} from the backup of these files."
        )
    if marker != installation:
        raise ForeignStore(
            f"{name} belongs to installation {marker}, and this is {installation}: nothing is stored or deleted in it. "
            "Correct HEIMDEX_FILES_URL, or give each installation a place of its own."
        )
    store.installation = installation


async def claim_async(store: FileStore, installation: str) -> None:
    """As `claim`, for an event loop."""
    await store.run(claim, store.blocking, installation)


def _mark(store: BlockingFileStore, installation: str) -> str | None:
    """Write the marker. Returns the one that the store then has, which may be that of a faster process."""
    try:
        store.create(MARKER, installation.encode(), content_type="text/plain")
    except AlreadyThere:
        return store.marker()
    return installation
