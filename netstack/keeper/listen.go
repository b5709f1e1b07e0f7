package keeper

// ListenPrefix, followed by an address as agent and init step were told it, such as ":80", is the key of a listening TCP socket on
// a port that takes a capability to bind: an init step leaves it there for the agent.
const ListenPrefix = "listen/"
