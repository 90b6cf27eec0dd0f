"""Routes over the blocks that peers hold: announcements, planning, placement. No role is filled
yet, so nothing here is a hook."""
