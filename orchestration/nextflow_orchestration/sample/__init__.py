"""The quickstart's input, made from packages that ship pages and photographs."""
