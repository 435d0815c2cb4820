"""What may be shown on a terminal."""

from __future__ import annotations


def plain(value: object) -> str:
    r"""Text that a terminal only shows: what it would obey or hide is written out, as ``\x1b``.

    For whatever a guest, a sample or a server had its say in.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)
    )


def size_text(size: int) -> str:
    """Bytes for people: 1.5 GiB."""
    number = float(size)
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
