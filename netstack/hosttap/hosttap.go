// Package hostport makes the host TAP's device: the persistent TAP through which processes of a node reach pods and
// Services. That takes NET_ADMIN, which the agent has not. So an init step makes the device and leaves its descriptor
// with the keeper, where the agent finds it.
package hosttap

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
)

const (
	// Name of the interface.
	Name = "tapestry0"
	// Key under which the keeper holds the descriptor; its meta is a Meta.
	Key = "host"
)

// Meta describes the device, whose Ethernet address is tap.HostMAC, to the agent.
type Meta struct {
	Name  string       `json:"name"`
	Addrs []netip.Addr `json:"addrs"`
	MTU   int          `json:"mtu"` // in bytes
}

// Config says what the device is to look like.
type Config struct {
	// PodCIDRs are the node's ranges, at most one per family. The device has the second address of each.
	PodCIDRs []netip.Prefix
	// Ranges, those of pods and Services in the whole cluster, are routed through the device. Those of a family without a
	// PodCIDR are left out.
	Ranges []netip.Prefix
	// MTU in bytes, that of pods.
	MTU int
	// Owner is the uid of the agent.
	Owner int
}

// Store is where the descriptor is left: a *keeper.Client or a *keeper.Keeper.
type Store interface {
	Get(key string) (keeper.Item, error)
	Put(key string, meta json.RawMessage, f *os.File) error
}

// Addrs are the host TAP's addresses on a node with these ranges.
func Addrs(podCIDRs []netip.Prefix) []netip.Addr {
	var list []netip.Addr
	for _, p := range podCIDRs {
		list = append(list, addressing.Host(p))
	}
	return list
}

// Ensure makes the device in ns as c says and has store hold it. Where both are there already, the device is changed to
// what c says, and nothing that uses it is disturbed unless its addresses change. It needs CAP_NET_ADMIN over the
// namespace.
func Ensure(ns *tap.Namespace, store Store, c Config) error {
	meta := Meta{Name: Name, Addrs: Addrs(c.PodCIDRs), MTU: c.MTU}
	text, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	device := tap.HostConfig(Name, meta.Addrs, c.Ranges, c.MTU, c.Owner)
	f, err := kept(ns, store, device)
	if err != nil {
		return err
	}
	if f == nil {
		f, err = tap.Create(ns, device)
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%w: a process that the keeper knows nothing of has it open, such as an agent that runs on after its keeper ended: stop it", err)
		}
		if err != nil {
			return err
		}
	}
	defer f.Close()
	return store.Put(Key, text, f)
}

// kept takes what store holds, if that is still the device, and changes it to what c says. It gives nil when it is not.
func kept(ns *tap.Namespace, store Store, c tap.Config) (*os.File, error) {
	it, err := store.Get(Key)
	if errors.Is(err, keeper.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := tap.Configure(ns, it.File, c); err != nil {
		it.File.Close()
		if errors.Is(err, tap.ErrNoDevice) { // somebody has removed it
			return nil, nil
		}
		return nil, err
	}
	return it.File, nil
}

// Remove takes the device away. None is no error.
func Remove(ns *tap.Namespace) error {
	if err := tap.DeleteLink(ns, Name); err != nil && !errors.Is(err, tap.ErrNoDevice) {
		return err
	}
	return nil
}
