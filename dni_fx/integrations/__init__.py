"""Rewritten nets in the trainers of other libraries; each module here needs its library.

In: a rewritten net, and the user's objects of a library. Out: objects of this library.
"""
