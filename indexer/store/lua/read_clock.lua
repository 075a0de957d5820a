-- Read the clock of the node that holds a key.
--
-- KEYS  1 any key; it selects the node and is not touched
--
-- Returns the time in ms.

return string.format('%.0f', now_ms())
