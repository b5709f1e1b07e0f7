package agent

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestOneSocket(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{":80", ":80", true},
		{":80", ":443", false},
		{":80", "0.0.0.0:80", true},
		{"0.0.0.0:80", "[::]:80", true}, // net.Listen makes a socket of both families of either
		{":80", "127.0.0.1:80", true},
		{"[::]:80", "127.0.0.1:80", true},
		{"127.0.0.1:80", "127.0.0.1:80", true},
		{"127.0.0.1:80", "127.0.0.1:http", true},
		{"127.0.0.1:80", "[::ffff:127.0.0.1]:80", true},
		{"[::1]:80", "[0:0::1]:80", true},
		{"127.0.0.1:80", "127.0.0.2:80", false},
		{"127.0.0.1:80", "[::1]:80", false},
		{"[fe80::1%1]:80", "[fe80::1%2]:80", false},
		{"", "", false},
		{":80", "", false},
		{":0", ":0", false}, // each gets a port of its own
		{"nonsense", "nonsense", false},
	} {
		if oneSocket(tt.a, tt.b) != tt.want || oneSocket(tt.b, tt.a) != tt.want {
			t.Errorf("%q and %q: got %v, want %v", tt.a, tt.b, !tt.want, tt.want)
		}
	}
}

// The kernel treats unspecified addresses as the table above says.
func TestOneSocketIsTheKernels(t *testing.T) {
	for _, tt := range [][2]string{{":0", "0.0.0.0"}, {"[::]:0", "127.0.0.1"}, {"127.0.0.1:0", ""}} {
		l, err := net.Listen("tcp", tt[0])
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		second := net.JoinHostPort(tt[1], port)
		if l, err := net.Listen("tcp", second); err == nil {
			l.Close()
			t.Errorf("%s and %s can both be listened on", tt[0], second)
		}
	}
}

func TestIngressConnections(t *testing.T) {
	dir := t.TempDir()
	app := &cli.App{Commands: []*cli.Command{Command()}, ExitErrHandler: func(*cli.Context, error) {}}
	err := app.RunContext(t.Context(), []string{"tapestry", "agent", "--node", "n", "--state", dir, "--keeper", dir + "/keeper",
		"--attach-socket", dir + "/attach", "--ingress-connections", "0"})
	if err == nil || !strings.Contains(err.Error(), "--ingress-connections") {
		t.Errorf("got %v, want an error that names the flag", err)
	}
}

func TestEqualListenAddressesAreAnError(t *testing.T) {
	for _, args := range [][]string{
		{"--ingress-http", "127.0.0.1:8080", "--ingress-https", "127.0.0.1:8080"},
		{"--ingress-http", ":8080", "--ingress-https", "0.0.0.0:8080"},
		{"--ingress-http", ":10256"}, // the default of --health-address
	} {
		dir := t.TempDir()
		app := &cli.App{Commands: []*cli.Command{Command()}, ExitErrHandler: func(*cli.Context, error) {}}
		err := app.RunContext(t.Context(), append([]string{"tapestry", "agent", "--node", "n", "--state", dir,
			"--keeper", dir + "/keeper", "--attach-socket", dir + "/attach"}, args...))
		if err == nil || !strings.Contains(err.Error(), "the same socket of this host") || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%v: got %v, want an error that names both flags", args, err)
		}
	}
}

// TestIngressPorts: the ports of Ingress are known before anybody listens there, if they can be.
func TestIngressPorts(t *testing.T) {
	for _, tt := range []struct {
		http, https string
		want        []uint16
	}{
		{":80", ":443", []uint16{80, 443}},
		{"127.0.0.1:http", "[::1]:8443", []uint16{80, 8443}},
		{"", ":443", []uint16{443}},
		{"", "", []uint16{}},
		{":80", ":0", nil},
		{":80", "nonsense", nil},
		{":80", ":nonsense", nil},
	} {
		c := agentConfig{ingressHTTP: tt.http, ingressHTTPS: tt.https}
		if got := c.ingressPorts(); !slices.Equal(got, tt.want) || (got == nil) != (tt.want == nil) {
			t.Errorf("%q and %q: got %v, want %v", tt.http, tt.https, got, tt.want)
		}
	}
}
