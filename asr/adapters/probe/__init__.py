"""The placement probe: gradient energy of every candidate module (PAGE), its peers, the ranking."""
