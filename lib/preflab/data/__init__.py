"""Preference pairs: worlds, files and the hub, in one schema.

From a source to pairs, each module does one step:

    worlds       small languages whose objectives are known exactly
    sources      tables of rows, from worlds, the hub or files
    schemas      which schema the rows have, and which objectives
    values       checked values of a row
    generators   from rows to pairs, one generator for each schema
    pairs        train and test pairs, disjoint by prompt
    report       what was read, kept and lost
    agreement    how far two objectives agree
    dialogues    texts without a preference
"""
