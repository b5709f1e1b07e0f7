package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/services/dns"
)

// Options say where Gather finds the agent and the API server.
type Options struct {
	// Socket is the path of the agent's local API.
	Socket string
	// APIServer is a URL. If it is "" and there are credentials, the agent's API server is used.
	APIServer string
	// ServerName is the name in the server's certificate; "" means the address.
	ServerName string
	// Credentials is a directory with the files token and ca.crt.
	Credentials string
}

// Credentials is where a container finds those of its service account.
const Credentials = "/var/run/secrets/kubernetes.io/serviceaccount"

const (
	agentTime = 10 * time.Second
	apiTime   = 5 * time.Second
	dnsTime   = 2 * time.Second
)

// Gather inspects the machine. It changes nothing.
func Gather(ctx context.Context, o Options) *Facts {
	f := &Facts{TUN: openTUN(), Interfaces: interfaces(), Group: uint32(os.Getegid()), Rules: rules()}
	f.PingGroups, f.PingError = pingGroups()
	f.askAgent(ctx, o.Socket)
	if list, err := dns.ResolvConf("/etc/resolv.conf"); err == nil {
		for _, a := range list {
			f.Upstreams = append(f.Upstreams, a.Addr())
		}
	}
	if f.Agent != nil && f.Agent.HostTAP {
		for _, a := range f.Agent.DNS {
			f.DNS = append(f.DNS, DNS{a, text(askDNS(ctx, a))})
		}
	}
	if _, err := os.Stat(filepath.Join(o.Credentials, "token")); o.APIServer == "" && err == nil && f.Agent != nil {
		o.APIServer = f.Agent.APIServer
	}
	if o.APIServer != "" {
		f.API = askAPI(ctx, o)
	}
	return f
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (f *Facts) askAgent(ctx context.Context, socket string) {
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	c := &localapi.Client{Path: socket}
	var a Agent
	var err error
	if a.Node, err = c.Node(ctx); err == nil {
		a.Peers, err = localapi.Peers.Ask(ctx, c)
	}
	if err == nil {
		a.Pods, err = localapi.Pods.Ask(ctx, c)
	}
	if err == nil {
		a.Problems, err = localapi.Problems.Ask(ctx, c)
	}
	if err != nil {
		f.AgentError = err.Error()
		return
	}
	a.Announcing = askAnnouncers(ctx, c, f.Interfaces)
	f.Agent = &a
}

func openTUN() TUN {
	file, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return TUN{
			Error: err.Error(), Missing: errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENXIO),
			Denied: errors.Is(err, fs.ErrPermission),
		}
	}
	_ = file.Close()
	return TUN{}
}

func interfaces() []Interface {
	var list []Interface
	all, _ := net.Interfaces() // after an error the list is empty, and a check reports that
	for _, nic := range all {
		i := Interface{Name: nic.Name, MTU: nic.MTU}
		addrs, _ := nic.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				i.Addrs = append(i.Addrs, p.Addr().Unmap())
			}
		}
		list = append(list, i)
	}
	return list
}

func pingGroups() (r [2]uint32, problem string) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ping_group_range")
	if err == nil {
		_, err = fmt.Sscan(string(b), &r[0], &r[1])
	}
	return r, text(err)
}

func askDNS(ctx context.Context, a netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, dnsTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "udp", netip.AddrPortFrom(a, 53).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	return dns.Probe(ctx, conn, "")
}

// hasCapNetAdmin reports whether this process may read all rules of the kernel.
func hasCapNetAdmin() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	return unix.Capget(&h, &d[0]) == nil && d[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}

// kubeProxys reports whether a chain belongs to kube-proxy in mode iptables or nftables.
func kubeProxys(table, chain string) bool {
	return table == "kube-proxy" || strings.HasPrefix(chain, "KUBE-SERVICES") || strings.HasPrefix(chain, "KUBE-NODEPORTS") ||
		strings.HasPrefix(chain, "KUBE-SVC-") || strings.HasPrefix(chain, "KUBE-EXT-")
}
