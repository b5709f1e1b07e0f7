// Package ingress serves HTTP and HTTPS for the cluster: it terminates TLS, matches requests to routes and proxies
// them to backends. It knows neither Kubernetes nor the network stack: it is given listeners and a dial function.
package ingress

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
)

// Config is the whole desired state of a Server.
type Config struct {
	// Routes of every Ingress, in no particular order: match decides precedence.
	Routes []Route
	// Default answers what no route matches; nil answers 404.
	Default *ServicePort
	// Certificates by SNI name. Of several for one host the first is served that is valid and that the client can use.
	Certificates []Certificate
}

// Certificate is a parsed key pair and the host names (exact or one-label wildcard "*.x") it was given for. It is shown to
// clients of these alone.
type Certificate struct {
	Name  string // namespace/name of the Secret
	Hosts []string
	Cert  tls.Certificate
}

var (
	_ fmt.Formatter  = Certificate{}
	_ slog.LogValuer = Certificate{}
)

// String names the certificate.
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
	// Source is namespace/name of the Ingress, for logs and for ties: the lesser wins.
	Source string
	Host   string // "" any; "*.example.com" one label
	Path   string // "" is "/"
	Type   PathType
	// Backend is what serves it. Who that is at the moment, Options.Endpoints says: a Config knows no endpoint.
	Backend ServicePort
}

// ServicePort names a port of a Service that is reached over TCP, by the port's name or by its number in decimal. The
// zero value has no endpoints.
type ServicePort struct {
	Namespace, Name string
	Port            string
}

// String gives namespace/name:port, for logs and metrics.
func (p ServicePort) String() string { return p.Namespace + "/" + p.Name + ":" + p.Port }
