"""The one loop of offline-to-online learning, what an agent is, and SAC."""
