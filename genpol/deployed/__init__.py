"""What is served on a robot: a value and edits around any policy, and newer ones as they come."""
