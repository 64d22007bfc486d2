"""The decoding process: it waits with all readers loaded, and forks a child for each upload.

A child sees one upload and ends with it, so that no visitor's file can reach another's memory, and a decoder that
crashes takes nobody else along. `mst.scans.isolation` is the other end.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mst.errors import ScanError
from mst.scans.decoding import decode_mask, decode_scan, preload
from mst.scans.sandbox import restrict_files, restrict_resources
from mst.scans.scan import Caution, Scan

DECODERS = {"scan": decode_scan, "mask": decode_mask}


def serve(control: socket.socket) -> None:
    """Forks a child for each request until the other end closes.

    A request is one byte with two handles: a socket for the request itself and its answer, and the memory for the
    voxels. The answer to that byte is the child's process number.
    """
    preload()
    # What is loaded stays as it is; a child's clean-up must not copy its pages.
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children leave nothing behind
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # decoders print what they think of a file
        os.dup2(quiet, stream)
    while True:
        data, handles, _, _ = socket.recv_fds(control, 1, 2)
        if not data:
            return
        child = os.fork()
        if child == 0:
            try:
                control.close()
                _decode(socket.socket(fileno=handles[0]), handles[1])
            finally:
                os._exit(0)
        for handle in handles:
            os.close(handle)
        control.sendall(struct.pack("<q", child))


def _decode(channel: socket.socket, memory: int) -> None:
    """One request: reads it, restricts this process to its files, decodes, answers."""
    with channel, channel.makefile("rwb") as stream:
        request = json.loads(stream.readline())
        restrict_resources(request["memory"], request["seconds"], request["file_bytes"])
        restrict_files([Path(p) for p in request["readable"]], [Path(request["staging"])])
        try:
            given = [Path(p) for p in request["paths"]]
            decode: Any = DECODERS[request["kind"]]
            scan = decode(given, Path(request["staging"]), **request["options"])
            answer = pack(scan)
            _hand_over(scan.voxels, memory)
        except ScanError as error:
            answer = {"error": str(error)}
        except (MemoryError, OSError):
            answer = {
                "error": f"{request['called']} needs more memory or disk than there is for reading one scan."
            }
        stream.write(json.dumps(answer).encode() + b"\n")


def pack(scan: Scan) -> dict[str, Any]:
    """All of a scan but its voxels, as plain values that go through JSON."""
    return {
        "shape": list(scan.shape),
        "affine": scan.affine.tolist(),
        "modality": scan.modality,
        "name": scan.name,
        "notes": [[str(note), isinstance(note, Caution)] for note in scan.notes],
        "source": None if scan.source is None else scan.source.pack(),
    }


def _hand_over(voxels: np.ndarray, memory: int) -> None:
    """Writes the voxels into shared memory, the first axis fastest."""
    os.ftruncate(memory, voxels.size * 4)
    # Slice by slice: a copy of the whole would double what a large scan takes.
    with os.fdopen(memory, "wb", closefd=False) as file:
        for k in range(voxels.shape[2]):
            file.write(np.ascontiguousarray(voxels[:, :, k].T, dtype=np.float32).data)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
