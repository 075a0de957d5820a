-- What the clock shows of the node that holds a key.
--
-- KEYS  1 any key: it says which node is asked, and is not touched
--
-- Returns the time in ms.

return string.format('%.0f', now_ms())
