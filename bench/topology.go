package bench

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/tap"
)

// Topology is a way from a client to servers, up when it is handed out. What lies between is what is measured.
type Topology interface {
	// Name is what tables call it.
	Name() string
	// Client is where the load generator runs. It stays the Topology's, as Server does.
	Client() *tap.Namespace
	// Server is where Run starts the load generator's server; nil when the Topology brings all its servers.
	Server() *tap.Namespace
	// Target is where the client reaches a service; false when the Topology has none of the kind: cases that need it
	// are left out.
	Target(Service) (netip.AddrPort, bool)
	// Close takes everything down, and waits for it.
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
	// IPerf3 is the server of that program, which Run starts beside the load generator's when a Case needs it.
	IPerf3 Service = "iperf3"
)

// The ports of the servers that Run starts.
const (
	LoadPort   = 5201
	HTTPPort   = 5280
	IPerf3Port = 5202
)

// DefaultMTU is that of pods on an underlay of 1500 bytes: what is compared should be cut the same way.
const DefaultMTU = 1420
