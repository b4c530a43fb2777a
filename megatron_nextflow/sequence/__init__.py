"""Where everything lies in a sequence: vocabulary, pack layout, rows of packs."""
