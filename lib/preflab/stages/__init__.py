"""What is done once and kept: base model, reward, training, snapshots, answers, alignment, evaluation.

A stage is a small frozen value. Its fields say everything that decides its content, its parents among them.
"""
