package baseline

import (
	"strings"
	"testing"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/process"
)

// A proxy routes by the Host header, like an ingress: a request for another host gets status 404.
func TestProxiesRouteByHost(t *testing.T) {
	for _, name := range []string{"nginx", "haproxy", "caddy"} {
		topology := made(t, name)
		if topology == nil {
			continue
		}
		defer topology.Close()
		server, _, err := process.Start(topology.Server(), spawn("serve", "--until-eof", "--http", backend.String()))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		target, _ := topology.Target(bench.HTTP)
		for _, host := range []string{bench.HTTPHost, "other.example"} {
			cmd := spawn("http", target.String(), "--time", "10ms", "--host", host, "--json")
			_, err := process.Output(t.Context(), topology.Client(), cmd)
			if host == bench.HTTPHost && err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if host != bench.HTTPHost && (err == nil || !strings.Contains(err.Error(), "404")) {
				t.Errorf("%s: %s: got %v, want status 404", name, host, err)
			}
		}
	}
}

// Without a backend a proxy answers with errors. They fail the measurement and do not become figures.
func TestProxyWithoutBackend(t *testing.T) {
	for _, name := range []string{"nginx", "haproxy", "caddy"} {
		topology := made(t, name)
		if topology == nil {
			continue
		}
		defer topology.Close()
		target, _ := topology.Target(bench.HTTP)
		cmd := spawn("http", target.String(), "--time", "10ms", "--host", bench.HTTPHost, "--json")
		if _, err := process.Output(t.Context(), topology.Client(), cmd); err == nil || !strings.Contains(err.Error(), "status 50") {
			t.Errorf("%s: got %v, want status 502 or 503", name, err)
		}
	}
}
