"""From any instruction files to one clean pool: readers, formats, conversations, ids, quarantine, export."""
