package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// errNoNamespace means that nothing is mounted at the path of a namespace any more.
var errNoNamespace = errors.New("there is no network namespace")

// namespace opens the pod's network namespace. It must not be the plugin's own: an eth0 made there would be the
// node's.
func (c *call) namespace() (*tap.Namespace, error) {
	ns, err := tap.OpenNamespace(c.args.Netns)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("CNI_NETNS: %w", err)
	case err != nil:
		return nil, fmt.Errorf("%w at %s: %w", errNoNamespace, c.args.Netns, err)
	}
	// The opened file is checked, not the path, which may lead somewhere else by now.
	st, err := ns.File().Stat()
	if err == nil {
		var own os.FileInfo
		if own, err = os.Stat("/proc/self/ns/net"); err == nil && os.SameFile(st, own) {
			err = types.NewError(types.ErrInvalidNetNS, "CNI_NETNS "+c.args.Netns+" is the namespace that this plugin runs in, and should be the pod's", "")
		}
	}
	if err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// tap returns the configuration of the pod's interface.
func (c *call) tap() (tap.Config, error) {
	mac, err := net.ParseMAC(c.pod.MAC)
	if err != nil || len(mac) != len(packet.MAC{}) {
		return tap.Config{}, fmt.Errorf("the agent gave %q, which is no Ethernet address", c.pod.MAC)
	}
	conf := tap.PodConfig(c.pod.Addrs, packet.MAC(mac), c.pod.MTU)
	conf.Name = c.args.IfName
	return conf, nil
}

// limit returns the limit on what the pod sends.
func (c *call) limit() tap.Rate {
	if c.pod.Bandwidth == nil {
		return tap.Rate{}
	}
	return tap.Rate{Bits: c.pod.Bandwidth.EgressRate, Burst: c.pod.Bandwidth.EgressBurst}
}

// inspect returns what is wrong with the pod's interface, or nil.
func (c *call) inspect(ns *tap.Namespace) error {
	conf, err := c.tap()
	if err != nil {
		return err
	}
	if err := tap.Inspect(ns, conf); err != nil {
		return err
	}
	want := c.limit().Bits
	have, err := tap.Limited(ns, conf.Name)
	if err == nil && have/8 != want/8 { // the kernel counts bytes
		err = fmt.Errorf("inspect interface %s: it is limited to %d bits per second, and should be to %d (0: not at all)", conf.Name, have, want)
	}
	return err
}

// result returns the result for the runtime, which extends that of the plugin before this one.
func (c *call) result() (*types100.Result, error) {
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	prev, err := c.prevResult()
	if err != nil {
		return nil, err
	}
	if prev != nil {
		r = prev
	}
	index := len(r.Interfaces)
	r.Interfaces = append(r.Interfaces, &types100.Interface{Name: c.args.IfName, Mac: c.pod.MAC, Mtu: c.pod.MTU, Sandbox: c.args.Netns})
	conf, err := c.tap()
	if err != nil {
		return nil, err
	}
	for i, a := range conf.Addrs {
		gateway := conf.Routes[i].Via.AsSlice()
		r.IPs = append(r.IPs, &types100.IPConfig{
			Interface: types100.Int(index),
			Address:   net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())},
			Gateway:   gateway,
		})
		dst := conf.Routes[i].Dst
		r.Routes = append(r.Routes, &types.Route{
			Dst: net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(0, dst.Addr().BitLen())}, GW: gateway,
		})
	}
	if !c.conf.DNS.IsEmpty() {
		r.DNS = c.conf.DNS
	}
	return r, nil
}

func (c *call) prevResult() (*types100.Result, error) {
	if len(c.conf.PrevResult) == 0 || string(c.conf.PrevResult) == "null" {
		return nil, nil
	}
	err := checkNulls(c.conf.PrevResult)
	var prev types.Result
	if err == nil {
		prev, err = version.NewResult(c.conf.CNIVersion, c.conf.PrevResult)
	}
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult cannot be read", err.Error())
	}
	r, err := types100.NewResultFromResult(prev)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult cannot be read", err.Error())
	}
	return r, nil
}

// checkNulls returns an error for a null in the lists of a result, which the library would use as an element.
func checkNulls(text []byte) error {
	var r map[string]json.RawMessage
	if err := json.Unmarshal(text, &r); err != nil {
		return err
	}
	for _, field := range []string{"interfaces", "ips", "routes"} {
		var list []any
		if err := json.Unmarshal(r[field], &list); err != nil || len(r[field]) == 0 {
			continue // no list, or an error that the library reports
		}
		if i := slices.Index(list, nil); i >= 0 {
			return fmt.Errorf("%s[%d] is null", field, i)
		}
	}
	return nil
}

func (c *call) print() error {
	r, err := c.result()
	if err != nil {
		return err
	}
	return types.PrintResult(r, c.conf.CNIVersion)
}

// checkCapabilities compares what the runtime asks for with what the agent does. Some runtimes do not repeat their
// request.
func (c *call) checkCapabilities(asked *cni.Pod) error {
	if asked.Bandwidth != nil && !asked.Bandwidth.Equal(c.pod.Bandwidth) {
		return fmt.Errorf("the agent has the limits %s, and the runtime asks for %s", inJSON(c.pod.Bandwidth), inJSON(asked.Bandwidth))
	}
	if len(asked.PortMappings) > 0 && !slices.Equal(asked.PortMappings, c.pod.PortMappings) {
		return fmt.Errorf("the agent has the port mappings %s, and the runtime asks for %s", inJSON(c.pod.PortMappings), inJSON(asked.PortMappings))
	}
	return nil
}

// inJSON returns v in the form that the runtime uses.
func inJSON(v any) []byte {
	b, _ := json.Marshal(v) // of plain structs
	return b
}

// checkResult compares what ADD told the runtime with the pod's present state. It ignores what later plugins added.
func (c *call) checkResult() error {
	prev, err := c.prevResult()
	if err != nil {
		return err
	}
	if prev == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing: CHECK needs what ADD answered", "")
	}
	index := slices.IndexFunc(prev.Interfaces, func(i *types100.Interface) bool {
		return i.Name == c.args.IfName && i.Sandbox == c.args.Netns
	})
	if index < 0 {
		return fmt.Errorf("prevResult has no interface %s in %s", c.args.IfName, c.args.Netns)
	}
	var errs []error
	if mac := prev.Interfaces[index].Mac; mac != c.pod.MAC {
		errs = append(errs, fmt.Errorf("prevResult has the Ethernet address %s, and the pod %s", mac, c.pod.MAC))
	}
	for _, a := range c.pod.Addrs {
		found := slices.ContainsFunc(prev.IPs, func(ip *types100.IPConfig) bool { return ip.Address.IP.Equal(a.AsSlice()) })
		if !found {
			errs = append(errs, fmt.Errorf("prevResult does not have the pod's address %s", a))
		}
	}
	return errors.Join(errs...)
}
