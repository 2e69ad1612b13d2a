# SPDX-License-Identifier: Apache-2.0
"""What the library costs: ``python -m benchmarks`` and ``python -m benchmarks.soak``.

    report      rows with what was measured, what must be reached, what is aimed for
    ends        two processes on 127.0.0.1, through the public API, and the same over plain sockets
    nodes       `Node` objects driven directly, under a virtual clock
    speed, cpu, memory   the rows
    plots       the same as pictures
    soak        hours of peers that come and go

Needs requirements.txt and requirements-bench.txt, and Linux or macOS.
"""
