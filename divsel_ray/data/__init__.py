"""From instruction files of any format to one clean pool: readers, formats, conversations, ids, quarantine, export."""
