"""The order of service: fair share over projects and jobs, and the messages that tell workers of it."""
