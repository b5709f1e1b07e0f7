// Package ingress serves HTTP and HTTPS for the cluster: it terminates TLS, matches requests to routes and proxies
// them to backends. It knows neither Kubernetes nor the network stack: its caller gives it listeners and a dial
// function.
package ingress

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
)

// Config is the whole desired state of a Server.
type Config struct {
	// Routes are those of every Ingress, in no particular order: package match decides precedence.
	Routes []Route
	// Default serves requests that no route matches; nil: they are answered 404.
	Default *ServicePort
	// Certificates are chosen by SNI name. Of several for one host the first is served that is valid and that the
	// client can use.
	Certificates []Certificate
}

// Certificate is a parsed key pair, and the host names (exact, or a one-label wildcard "*.x") that it is for. It is
// served to clients of these names only.
type Certificate struct {
	Name  string // namespace/name of the Secret
	Hosts []string
	Cert  tls.Certificate
}

var (
	_ fmt.Formatter  = Certificate{}
	_ slog.LogValuer = Certificate{}
)

// String returns the certificate's name and hosts.
func (c Certificate) String() string { return fmt.Sprintf("certificate %q for %q", c.Name, c.Hosts) }

// Format never shows the private key, whatever the verb.
func (c Certificate) Format(s fmt.State, _ rune) { io.WriteString(s, c.String()) }

// LogValue never shows the private key.
func (c Certificate) LogValue() slog.Value { return slog.StringValue(c.String()) }

// PathType is how a path is compared (networking.k8s.io/v1 PathType).
type PathType uint8

// The path types. ImplementationSpecific is treated as Prefix.
const (
	Prefix PathType = iota // element by element
	Exact
)

// Route is one rule: host and path to a Service port.
type Route struct {
	// Source is namespace/name of the Ingress, for logs and for ties. Of two equal routes the one with the lesser
	// Source wins.
	Source string
	Host   string // "" any; "*.example.com" one label
	Path   string // "" is "/"
	Type   PathType
	// Backend is the Service port that serves the route. Options.Endpoints returns its endpoints; a Config has none.
	Backend ServicePort
	// Upgrades are the protocols besides websocket that clients may change to (RFC 9110 section 7.8), like "tcp" or
	// "SPDY/3.1". Case does not matter. What is in an upgraded connection is not looked at, so a protocol that carries
	// HTTP could carry requests that bypass the routes.
	Upgrades []string
}

// ServicePort identifies a TCP port of a Service, by the port's name or by its number in decimal. The zero value has no
// endpoints.
type ServicePort struct {
	Namespace, Name string
	Port            string
}

// String returns namespace/name:port, for logs and metrics.
func (p ServicePort) String() string { return p.Namespace + "/" + p.Name + ":" + p.Port }
