"""Tells a job's end to its `callback_url`: which URLs are taken, whom they may reach, how a try is made and repeated.

`urls` and `allowed` say what may be called; `accepting` refuses the rest when a job is submitted, `connecting` (with
`resolving`) once more for each connection; `streams` holds what comes over it to its `budget`; `posting` makes one
signed try, `delivering` takes the tries from JetStream, `pauses` and `receivers` say when the next one is; `documented`
is what the OpenAPI document says of it.
"""
