package baseline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/netstack/tap"
)

// Direction is who dials whom through a program that joins a pod to its host.
type Direction string

// The directions.
const (
	Egress Direction = "egress" // the pod dials the outside
	Port   Direction = "port"   // the outside dials a port of the host, which is forwarded into the pod
)

const (
	// outsideMTU is the MTU of the wire between host and outside.
	outsideMTU = 1500
	// slirpMTU is the pod's MTU with pasta and slirp4netns: pasta's default, and what the manual of slirp4netns
	// advises. Such packets are their form of a superframe, and the reason why they are fast.
	slirpMTU = "65520"
)

// Pasta returns a pod that pasta (passt.top) joins to its host. A veth pair joins the host to the outside. Pasta keeps
// its defaults, of which the MTU of 65520 matters most. Its manual also recommends larger net.core.rmem_max and
// wmem_max. Those are settings of the whole machine, and stay the same for every topology.
func Pasta(d Direction) (bench.Topology, error) {
	path, err := process.Find("pasta", "apt-get install passt")
	if err != nil {
		return nil, err
	}
	return behindHost("pasta", d, func(p *pair, host, pod *tap.Namespace) error {
		dir, err := p.tempDir()
		if err != nil {
			return err
		}
		ports := "none"
		if d == Port {
			ports = fmt.Sprint(bench.LoadPort)
		}
		pidFile := filepath.Join(dir, "pid")
		cmd := exec.Command(path, "--foreground", "--quiet", "--ipv4-only", "--config-net", "--mtu", slirpMTU,
			"--no-map-gw", "--ns-ifname", "eth0", "--tcp-ports", ports, "--udp-ports", ports, "--tcp-ns", "none", "--udp-ns", "none",
			// pasta would become the user nobody, who may not enter the namespace and does not exist in a user
			// namespace.
			"--runas", "0",
			// Newer versions close all descriptors except the standard ones.
			"--netns", "/proc/self/fd/0", "--no-netns-quit", "--pid", pidFile)
		cmd.Stdin = pod.File()
		return p.daemon(host, cmd, func(ctx context.Context) error {
			return process.Eventually(ctx, func(context.Context) error {
				if pid, err := os.ReadFile(pidFile); err != nil || len(pid) == 0 {
					return errors.Join(errors.New("it has not written its pid file yet"), err)
				}
				return nil
			})
		})
	})
}

// slirpPodAddr is the address that slirp4netns gives the pod.
const slirpPodAddr = "10.0.2.100"

// Slirp4netns returns a pod that slirp4netns joins to its host, as rootless containers have it. A veth pair joins the
// host to the outside. The settings are those that the manual advises: an MTU of 65520, and a tcp_rmem that does not
// slow port forwarding down. Neither of its sandboxes is on.
func Slirp4netns(d Direction) (bench.Topology, error) {
	path, err := process.Find("slirp4netns", "apt-get install slirp4netns")
	if err != nil {
		return nil, err
	}
	return behindHost("slirp4netns", d, func(p *pair, host, pod *tap.Namespace) error {
		if err := tap.SetSysctl(pod, "net.ipv4.tcp_rmem", "4096 87380 6291456"); err != nil {
			return err
		}
		dir, err := p.tempDir()
		if err != nil {
			return err
		}
		ready, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer ready.Close()
		socket := filepath.Join(dir, "api")
		cmd := exec.Command(path, "--configure", "--mtu", slirpMTU, "--disable-host-loopback", "--disable-dns", "--ready-fd", "3",
			"--api-socket", socket, "--netns-type", "path", "/proc/self/fd/0", "eth0")
		cmd.Stdin = pod.File()
		cmd.ExtraFiles = []*os.File{w}
		err = p.daemon(host, cmd, func(ctx context.Context) error {
			w.Close()
			defer context.AfterFunc(ctx, func() { ready.Close() })()
			_, err := io.ReadFull(ready, make([]byte, 1))
			return err
		})
		w.Close()
		if err != nil || d == Egress {
			return err
		}
		return errors.Join(forwardPort(socket, "tcp"), forwardPort(socket, "udp"))
	})
}

// forwardPort makes slirp4netns forward the host's LoadPort to the pod's.
func forwardPort(socket, protocol string) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer c.Close()
	err = json.NewEncoder(c).Encode(map[string]any{"execute": "add_hostfwd", "arguments": map[string]any{
		"proto": protocol, "host_addr": middleAddr.Addr().String(), "host_port": bench.LoadPort,
		"guest_addr": slirpPodAddr, "guest_port": bench.LoadPort,
	}})
	if err == nil {
		err = c.CloseWrite()
	}
	var answer struct{ Return, Error json.RawMessage }
	if err == nil {
		err = json.NewDecoder(c).Decode(&answer)
	}
	if err == nil && answer.Return == nil {
		err = fmt.Errorf("it answered %s", answer.Error)
	}
	if err != nil {
		return fmt.Errorf("make slirp4netns forward %s port %d: %w", protocol, bench.LoadPort, err)
	}
	return nil
}

// behindHost joins a host to the outside by a wire, and calls join to join the pod to the host.
func behindHost(name string, d Direction, join func(p *pair, host, pod *tap.Namespace) error) (bench.Topology, error) {
	if d != Egress && d != Port {
		return nil, fmt.Errorf("baseline: direction %q, expected %s or %s", d, Egress, Port)
	}
	return build(name+"-"+string(d), func(p *pair) error {
		outside, pod, outsideAddr := p.server, p.client, serverAddr
		if d == Port {
			outside, pod, outsideAddr = p.client, p.server, clientAddr
			p.targets = map[bench.Service]netip.AddrPort{bench.Load: netip.AddrPortFrom(middleAddr.Addr(), bench.LoadPort)}
		}
		host, err := p.namespace()
		if err != nil {
			return err
		}
		err = wire(outsideMTU, side{tap.End{Namespace: outside, Name: "eth0"}, outsideAddr}, side{tap.End{Namespace: host, Name: "eth0"}, middleAddr})
		if err != nil {
			return err
		}
		// pasta copies the addresses of the interface with the default route.
		if err := defaultRoute(host, outsideAddr); err != nil {
			return err
		}
		return join(p, host, pod)
	})
}
