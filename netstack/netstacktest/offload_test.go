package netstacktest_test

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/userns"
)

func TestMain(m *testing.M) { userns.Main(m) }

// observed is a real TAP. broken counts the frames written to it that need offloads it lacks, and super counts all
// superframes.
type observed struct {
	*tap.Device
	broken, super atomic.Int64
}

func (o *observed) Write(frame []byte) error {
	var p packet.Packet
	if p.ParseFrame(frame) == packet.Good {
		var needs tap.Offloads
		switch p.VNet.GSOType &^ packet.GSOECN {
		case packet.GSOTCPv4:
			needs = tap.Csum | tap.TSO4
		case packet.GSOTCPv6:
			needs = tap.Csum | tap.TSO6
		case packet.GSOUDPL4:
			needs = tap.Csum | tap.USO
		}
		if needs != 0 {
			o.super.Add(1)
		}
		if p.VNet.Flags&packet.NeedsCsum != 0 {
			needs |= tap.Csum
		}
		if needs&^o.Offloads() != 0 {
			o.broken.Add(1)
		}
	}
	return o.Device.Write(frame)
}

// nothing is a Balancer without Services.
type nothing struct{}

func (nothing) Pick(*packet.Tuple) packet.Choice                { return packet.Choice{} }
func (nothing) Backend(uint64, packet.Addr) packet.BackendState { return packet.BackendGone }
func (nothing) Leads(*packet.Tuple, uint64, uint16) bool        { return false }

func (nothing) IsEndpoint(packet.Endpoint, packet.Proto) bool { return false }
func (nothing) Exposed(packet.Addr) bool                      { return false }

// pod makes a namespace with a TAP that has all offloads except without.
func pod(t *testing.T, path *netstack.Path, last byte, without tap.Offloads) (*tap.Namespace, *observed, []netip.Addr) {
	t.Helper()
	ns, err := tap.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	addrs := []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 1, last}), netip.AddrFrom16([16]byte{0: 0xfd, 15: last})}
	mac := packet.MAC{2, 0, 0, 0, 0, last}
	f, err := tap.Create(ns, tap.PodConfig(addrs, mac, 1420))
	if err != nil {
		t.Fatal(err)
	}
	dev, err := tap.NewDevice(f, tap.Options{Disable: without})
	if err != nil {
		f.Close()
		t.Fatal(err)
	}
	o := &observed{Device: dev}
	name := addrs[0].String()
	if err := path.Attach(netstack.AttachmentConfig{Name: name, MAC: mac, Addrs: addrs}, o); err != nil {
		dev.Close()
		t.Fatal(err)
	}
	return ns, o, addrs
}

// TestOffloadsOff sends in both directions between a pod with all offloads and one that lacks some, on real TAPs
// through a node.
func TestOffloadsOff(t *testing.T) {
	for _, without := range []tap.Offloads{0, tap.TSO4, tap.TSO6, tap.TSO4 | tap.TSO6, tap.USO, tap.Csum, tap.AllOffloads} {
		t.Run("without "+without.String(), func(t *testing.T) {
			flows, err := flow.Open(make([]byte, flow.Size(64)), flow.Options{})
			if err != nil {
				t.Fatal(err)
			}
			path, err := netstack.New(netstack.Options{Flows: flows, MTU: 1420})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { path.Close() })
			nsA, a, addrsA := pod(t, path, 10, 0)
			nsB, b, addrsB := pod(t, path, 11, without)
			if a.Offloads() != tap.AllOffloads {
				t.Logf("this kernel has no more than %s: %v", a.Offloads(), a.Refused())
			}
			ranges := []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00::/64")}
			if err := path.Set(netstack.Config{PodCIDRs: ranges, ClusterCIDRs: ranges, MTU: 1420}, nothing{}, nil); err != nil {
				t.Fatal(err)
			}
			for i := range addrsA {
				transfer(t, nsA, nsB, addrsB[i])
				transfer(t, nsB, nsA, addrsA[i])
			}
			if b.broken.Load() > 0 || a.broken.Load() > 0 {
				t.Errorf("%d frames counted on what the TAP lacks", b.broken.Load()+a.broken.Load())
			}
			if want := b.Offloads()&(tap.TSO4|tap.TSO6) != 0; (b.super.Load() > 0) != want {
				t.Errorf("superframes to a TAP with %s: %d", b.Offloads(), b.super.Load())
			}
			if down := path.Stats().Drops["tap-down"]; down > 0 {
				t.Errorf("%d packets were refused by a TAP", down)
			}
		})
	}
}

// transfer sends a MiB from one namespace to a listener in another and compares what arrives.
func transfer(t *testing.T, from, to *tap.Namespace, addr netip.Addr) {
	t.Helper()
	var l net.Listener
	if err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := make([]byte, 1<<20)
	rand.Read(sent)
	type result struct {
		sum [32]byte
		err error
	}
	got := make(chan result, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- result{err: err}
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(await.Patience))
		all, err := io.ReadAll(c)
		got <- result{sha256.Sum256(all), err}
	}()
	err := from.Do(func() error {
		c, err := net.DialTimeout("tcp", l.Addr().String(), await.Patience)
		if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(await.Patience))
		_, err = c.Write(sent)
		return errors.Join(err, c.Close())
	})
	if err != nil {
		t.Fatalf("to %s: %v", addr, err)
	}
	if r := <-got; r.err != nil || r.sum != sha256.Sum256(sent) {
		t.Fatalf("to %s: what arrived is not what was sent: %v", addr, r.err)
	}
}
