-- When each durable consumer was created, as JSON: how the sweep notices that one was removed and made again, which
-- takes along the messages that nobody else had an interest in.
ALTER TABLE stream_seen ADD COLUMN IF NOT EXISTS durables text;
