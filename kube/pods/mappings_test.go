package pods

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
)

func asking(pod cni.Pod, m ...cni.PortMapping) cni.Pod {
	pod.Addrs = []netip.Addr{netip.MustParseAddr("10.244.1.3"), netip.MustParseAddr("fd00::3")}
	pod.PortMappings = m
	return pod
}

func TestMerge(t *testing.T) {
	named := []services.HostPort{{
		Pod: "default/web", ID: "u", Addr: netip.IPv4Unspecified(), Port: 80, Protocol: packet.TCP, To: netip.MustParseAddrPort("10.244.1.9:8080"),
	}}
	web, stranger := cni.Pod{Namespace: "default", Name: "web"}, cni.Pod{Namespace: "cni.net", Name: "c1"}
	for name, tc := range map[string]struct {
		pod     cni.Pod
		want    []string // besides the named ones
		problem string
	}{
		"both families":   {asking(stranger, cni.PortMapping{HostPort: 81, ContainerPort: 8081, Protocol: "TCP"}), []string{"0.0.0.0:81>10.244.1.3:8081", "[::]:81>[fd00::3]:8081"}, ""},
		"one address":     {asking(stranger, cni.PortMapping{HostPort: 81, ContainerPort: 1, Protocol: "tcp", HostIP: "127.0.0.1"}), []string{"127.0.0.1:81>10.244.1.3:1"}, ""},
		"another proto":   {asking(stranger, cni.PortMapping{HostPort: 80, ContainerPort: 1, Protocol: "udp", HostIP: "0.0.0.0"}), []string{"0.0.0.0:80>10.244.1.3:1"}, ""},
		"named already":   {asking(web, cni.PortMapping{HostPort: 80, ContainerPort: 8080, Protocol: "tcp", HostIP: "0.0.0.0"}), nil, ""},
		"of another":      {asking(stranger, cni.PortMapping{HostPort: 80, ContainerPort: 1, Protocol: "tcp", HostIP: "172.31.0.1"}), nil, "hostPort 80 at 172.31.0.1 belongs to Pod default/web"},
		"of a Pod object": {asking(cni.Pod{Namespace: "default", Name: "next"}, cni.PortMapping{HostPort: 80, ContainerPort: 1, HostIP: "0.0.0.0"}), nil, ""},
		"not the node's":  {asking(stranger, cni.PortMapping{ContainerPort: 80, Protocol: "tcp"}), nil, ""},
		"the same twice": {asking(stranger, cni.PortMapping{HostPort: 81, ContainerPort: 1, HostIP: "::"}, cni.PortMapping{HostPort: 81, ContainerPort: 1, HostIP: "::"}),
			[]string{"[::]:81>[fd00::3]:1"}, ""},
	} {
		all, problems := merge(named, []cni.Pod{tc.pod})
		var got []string
		for _, h := range all[1:] {
			got = append(got, netip.AddrPortFrom(h.Addr, h.Port).String()+">"+h.To.String())
		}
		if !slices.Equal(got, tc.want) || all[0] != named[0] {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
		text := ""
		for _, p := range problems {
			text += p.String()
		}
		if (tc.problem == "") != (text == "") || !strings.Contains(text, tc.problem) {
			t.Errorf("%s: %q, want %q", name, text, tc.problem)
		}
	}
}

func TestBadMappings(t *testing.T) {
	for want, m := range map[string]cni.PortMapping{
		`portMappings[0].protocol: "icmp" is not`: {HostPort: 1, ContainerPort: 1, Protocol: "icmp"},
		"portMappings[0].containerPort: 0 is no":  {HostPort: 1, Protocol: "tcp"},
		`portMappings[0].hostIP: "localhost" is`:  {HostPort: 1, ContainerPort: 1, HostIP: "localhost"},
		`portMappings[0].hostIP: "224.0.0.1" is`:  {HostPort: 1, ContainerPort: 1, HostIP: "224.0.0.1"},
	} {
		d := newDesk(t)
		p := d.prepare("a")
		p.PortMappings = []cni.PortMapping{m}
		if err := d.Add(p.Pod, d.tap()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// Changed is called for every change, after which HostPorts returns the new state.
func TestMappingsChange(t *testing.T) {
	d := newDesk(t)
	heard := 0
	d.changed = func() {
		heard++
		d.HostPorts(nil) // takes the lock
	}
	add := func(container string, m ...cni.PortMapping) error {
		p := podOf(container)
		p.Namespace = "cni.net"
		got, err := d.Prepare(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		got.PortMappings = m
		return d.Add(got.Pod, d.tap())
	}
	has := func(changes, ports int) {
		t.Helper()
		if all, _ := d.HostPorts(nil); heard != changes || len(all) != ports {
			t.Errorf("heard of %d changes, and there are %d ports; want %d and %d", heard, len(all), changes, ports)
		}
	}
	if err := add("plain"); err != nil {
		t.Fatal(err)
	}
	has(0, 0)
	m := cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}
	if err := add("a", m); err != nil {
		t.Fatal(err)
	}
	has(1, 1)
	if err := add("b", m); err == nil || !strings.Contains(err.Error(), "hostPort 8080 belongs to Pod cni.net/p-a") {
		t.Errorf("got %v", err)
	}
	has(1, 1)
	// A repeated ADD with the same ports finds the pod attached; with other ports the pod is attached again.
	p := podOf("a")
	p.Namespace, p.PortMappings = "cni.net", []cni.PortMapping{m}
	if got, err := d.Prepare(t.Context(), p); err != nil || !got.Attached {
		t.Errorf("%+v, %v", got, err)
	}
	p.PortMappings = nil
	if got, err := d.Prepare(t.Context(), p); err != nil || got.Attached {
		t.Errorf("%+v, %v", got, err)
	}
	if err := d.Del(p); err != nil {
		t.Fatal(err)
	}
	has(2, 0)
	if err := add("b", m); err != nil {
		t.Fatal(err)
	}
	has(3, 1)
	if err := d.Collect(t.Context(), "net", nil); err != nil {
		t.Fatal(err)
	}
	has(4, 0)
}
