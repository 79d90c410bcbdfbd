"""Learning from rounds of episodes: play a round, reward its episodes, take K steps, forget it."""
