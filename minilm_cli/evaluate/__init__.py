"""How good a model is: tasks, fine-tuning, embeddings as they are, and scores next to the teacher's.

It does not know how a model was trained. It hands out `evaluating.evaluate`.
"""
