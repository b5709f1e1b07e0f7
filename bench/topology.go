package bench

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/tap"
)

// Topology is a way from a client to servers. It is up when the caller gets it. What lies between client and server is
// what is measured.
type Topology interface {
	// Name is the name in tables.
	Name() string
	// Client is the namespace in which the load generator runs. It stays the Topology's, and so does Server.
	Client() *tap.Namespace
	// Server is the namespace in which Run starts the load generator's server; nil when the Topology brings all its
	// servers.
	Server() *tap.Namespace
	// Target is the address at which the client reaches a service; false when the Topology has no such service. Cases
	// that need it are left out.
	Target(Service) (netip.AddrPort, bool)
	// Close takes everything down and returns when that is done.
	Close() error
}

// Service is a kind of server that a Case talks to.
type Service string

// The kinds.
const (
	Load  Service = "load"  // the load generator's own protocol, over TCP and UDP
	HTTP  Service = "http"  // the load generator's web server, as it is or behind a proxy
	HTTPS Service = "https" // the same behind a proxy that ends TLS
	DNS   Service = "dns"   // a name server for the cluster's zone, over UDP
	// IPerf3 is iperf3's server. Run starts it beside the load generator's when a Case needs it.
	IPerf3 Service = "iperf3"
)

// The ports of the servers that Run starts.
const (
	LoadPort   = 5201
	HTTPPort   = 5280
	IPerf3Port = 5202
)

// DefaultMTU is the MTU of pods on an underlay of 1500 bytes. Baselines have the same MTU, so that packets are cut in
// the same way.
const DefaultMTU = 1420
