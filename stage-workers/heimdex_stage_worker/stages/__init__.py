"""The code of the stages that ship: functions of a context, which use neither the broker nor the database.

A function may be an `async def`, or a plain `def` that blocks and then runs in a thread. The stage succeeds when its
function returns. If the function raises, the attempt fails and is retried by the pipeline's policy; PermanentError is
never retried.
"""
