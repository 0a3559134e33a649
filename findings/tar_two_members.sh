#!/usr/bin/env bash
# One would guess: A tar reader that finds the compression by itself reads the same files in
# stream mode ("r|*") as in file mode ("r:*").
#
# What is seen: Where the compressed file is two compressed members one after another (as cat
# a.gz b.gz or pbzip2 make), the stream mode stops at the end of the first.
# It then raises an error in the middle of the archive, which looks like a broken file. Python
# 3.11.7:
#   Python 3.11.7
#   gz one member, r|* (6, 'ok')
#   gz two members, r:* (6, 'ok')
#   gz two members, r|* (3, 'ReadError: unexpected end of data')
#   gz two members, gzip.open and r| (6, 'ok')
#   bz2 one member, r|* (6, 'ok')
#   bz2 two members, r|* (3, 'ReadError: unexpected end of data')
#   bz2 two members, bz2.open and r| (6, 'ok')
#   xz one member, r|* (6, 'ok')
#   xz two members, r|* (3, 'EOFError: Already at end of stream')
#   xz two members, lzma.open and r| (6, 'ok')
#
# So: For a stream, open the decompressor yourself (gzip.open, bz2.open, lzma.open) and give
# tarfile the plain stream with mode "r|".
# These three read all the members one after another.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"

cd "$folder"
"$folder/venv/bin/python" - <<'PROGRAM'
import bz2, gzip, io, lzma, platform, tarfile

print("Python", platform.python_version())

plain = io.BytesIO()
with tarfile.open(fileobj=plain, mode="w") as archive:
    for index in range(6):
        content = bytes((index * 7 + position) % 251 for position in range(50000))
        member = tarfile.TarInfo(f"picture_{index}.bin")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
plain = plain.getvalue()
half = len(plain) // 2


def count_files(source, mode):
    count = 0
    try:
        with tarfile.open(fileobj=source, mode=mode) as archive:
            for member in archive:
                assert len(archive.extractfile(member).read()) == 50000
                count += 1
    except (tarfile.ReadError, EOFError) as error:
        return count, f"{type(error).__name__}: {error}"
    return count, "ok"


for name, module in (("gz", gzip), ("bz2", bz2), ("xz", lzma)):
    two_members = module.compress(plain[:half]) + module.compress(plain[half:])
    one_member = module.compress(plain)
    assert module.decompress(two_members) == plain
    file_mode = count_files(io.BytesIO(two_members), "r:*")
    stream_mode = count_files(io.BytesIO(two_members), "r|*")
    one_stream_mode = count_files(io.BytesIO(one_member), "r|*")
    own_decompressor = count_files(module.open(io.BytesIO(two_members)), "r|")
    print(name, "one member, r|*", one_stream_mode)
    print(name, "two members, r:*", file_mode)
    print(name, "two members, r|*", stream_mode)
    print(name, f"two members, {module.__name__}.open and r|", own_decompressor)
    assert one_stream_mode == file_mode == own_decompressor == (6, "ok")
    assert stream_mode[0] < 6
PROGRAM
