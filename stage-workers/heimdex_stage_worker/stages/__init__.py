"""The code of the stages that ship: plain functions of a context. They know no broker and no database.

A function may be `async def`, or a plain `def` that blocks: it then runs in a thread. Returning ends the stage well;
raising ends the attempt in an error, which is retried by the pipeline's policy (`PermanentError`: never).
"""
