"""Tables, value types, states and errors. Imports nothing of ours."""
