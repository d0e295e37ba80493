"""Phase 2 of the paper: how good is an embedding, on which task, next to which baseline, and how sure are we?"""
