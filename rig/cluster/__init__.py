"""Cells of the matrix on many machines, by Dask distributed.

    scheduler.py   passes messages on, and holds the files that cells are made of, by their hash
    worker.py      a machine that runs cells: one process for each CPU, each runs one cell at a time
    client.py      `rig matrix --cluster`: decides which cell goes where (lab.py), sends it, places what comes back
    cell.py        what a worker does with a cell

Dask moves the messages, knows who is there, starts dead processes again and does TLS. Which worker gets which cell is
decided by the client, one cell a process at a time: Dask gives tasks to workers ahead of time, and when a worker dies
it could not tell the cell that did it from those that only waited there.
"""
