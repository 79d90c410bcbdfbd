"""Other people's policies behind one interface: robomimic, Octo, LeRobot, any callable."""
