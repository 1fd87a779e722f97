"""A stored file as a corpus: unpacked and parsed as its name and its first bytes say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from sqlalchemy import select

from engine.corpus.formats import HEAD_BYTES, CorpusOptions, decoder_of, format_of, has_known_ending, parser_of
from engine.corpus.lines import ByteLimit, IdentityDecoder, ParsedRecords
from engine.corpus.parser import CorpusParser, Decoder
from engine.corpus.unreadable import UnreadableCorpus
from engine.files.file_store import FileStore
from engine.files.read import read_file
from models.file import File
from models.file_errors import FileNotFound


class CorpusFile:
    """An opened corpus. Pass each of `chunks` to parse(), and end with finish(), both in a work thread."""

    def __init__(self, filename: str, head: bytes, chunks: AsyncIterator[bytes], options: CorpusOptions) -> None:
        self.chunks = chunks
        self._filename = filename
        self._options = options
        self._decoder: Decoder = decoder_of(head, options)
        self._parser: CorpusParser | None = None
        self._is_packed = not isinstance(self._decoder, IdentityDecoder)
        self._head = head

    def check_name(self) -> None:
        """Raises InvalidInput where the name alone says that the file cannot be read, or not with these columns."""
        if not self._is_packed or has_known_ending(self._filename):
            head = b"" if self._is_packed else self._head
            parser_of(format_of(self._filename, head), self._options)

    def parse(self, chunk: bytes, meter: ByteLimit) -> Iterator[ParsedRecords]:
        """The records that this chunk completes. Raises InvalidInput, PayloadTooLarge."""
        for piece in self._decoder.feed(chunk):
            meter.take(len(piece))
            if self._parser is None:
                self._parser = self._open(piece)
            yield from self._parser.feed(piece)

    def finish(self, meter: ByteLimit) -> Iterator[ParsedRecords]:
        """The last records. Raises InvalidInput, also for an empty file."""
        self._decoder.finish()
        if self._parser is None:
            raise UnreadableCorpus("the file is empty", "send one with a text", param="input_file_id")
        yield from self._parser.finish()

    def _open(self, head: bytes) -> CorpusParser:
        return parser_of(format_of(self._filename, head), self._options)


async def open_corpus_file(
    store: FileStore, file_id: str, *, text_column: str | None, id_column: str | None
) -> CorpusFile:
    """Open a stored file, also a deleted one whose bytes are there. Raises FileNotFound, StorageUnavailable."""
    async with store.database.read() as connection:
        filename = (await connection.execute(select(File.filename).where(File.id == file_id))).scalar_one_or_none()
    if filename is None:
        raise FileNotFound(file_id)
    settings = store.settings
    options = CorpusOptions(
        text_column,
        id_column,
        max_line_bytes=settings.max_line_bytes,
        max_bytes=settings.max_file_bytes,
        max_ratio=settings.max_compression_ratio,
        folder=settings.data_dir,
        where="the file",
    )
    head = b"".join([piece async for piece in read_file(store, file_id, 0, HEAD_BYTES)])
    return CorpusFile(filename, head, read_file(store, file_id), options)
