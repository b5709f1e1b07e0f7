package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
)

// options has the options of the command line.
type options struct {
	dir       string // absolute
	bind      string
	advertise string
	port      int
	// serviceCIDRs and podCIDRs have one prefix, or one for each family.
	serviceCIDRs, podCIDRs []netip.Prefix
	sans                   []string
	nodes                  []node
	scheduler              bool
	apiserverArgs          []string
	controllerArgs         []string
}

// A node is a node whose kubelet gets certificates.
type node struct {
	name  string
	addrs []string
}

func parse(args []string) (options, error) {
	var o options
	var services, pods, sans, nodes, apiserver, controller string
	fs := flag.NewFlagSet("controlplane up", flag.ExitOnError)
	fs.StringVar(&o.dir, "dir", "", "`directory` of the cluster's state; required")
	fs.StringVar(&o.bind, "bind", "127.0.0.1", "`address` on which the API server listens")
	fs.StringVar(&o.advertise, "advertise", "", "`address` of the API server for everybody else, and the endpoint of the Service kubernetes, which has none when this is a loopback address (default: that of -bind)")
	fs.IntVar(&o.port, "port", 0, "the API server's `port` (default: any free one)")
	fs.StringVar(&services, "service-cidr", "10.96.0.0/12", "`prefix` of the Services; of both families: two, separated by a comma")
	fs.StringVar(&pods, "pod-cidr", "10.244.0.0/16", "`prefix` of the pods; each node gets a /24 (IPv4) or /64 (IPv6) of it")
	fs.StringVar(&sans, "sans", "", "further `names` and addresses in the API server's certificate, separated by commas")
	fs.StringVar(&nodes, "nodes", "", "`nodes` to make certificates for: name=address[+address], separated by commas")
	fs.BoolVar(&o.scheduler, "scheduler", true, "with a scheduler")
	fs.StringVar(&apiserver, "apiserver-args", "", "further `flags` of kube-apiserver, separated by spaces")
	fs.StringVar(&controller, "controller-manager-args", "", "further `flags` of kube-controller-manager, separated by spaces")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("%q: there are only flags", fs.Arg(0))
	}
	if o.dir == "" {
		return o, errors.New("-dir is missing: give it a directory for the cluster's state")
	}
	var err error
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return o, err
	}
	if o.serviceCIDRs, err = prefixes("-service-cidr", services); err != nil {
		return o, err
	}
	if o.podCIDRs, err = prefixes("-pod-cidr", pods); err != nil {
		return o, err
	}
	if o.advertise == "" {
		o.advertise = o.bind
	}
	o.sans = split(sans)
	o.apiserverArgs, o.controllerArgs = strings.Fields(apiserver), strings.Fields(controller)
	for _, n := range split(nodes) {
		name, addrs, ok := strings.Cut(n, "=")
		if !ok || name == "" || addrs == "" {
			return o, fmt.Errorf("-nodes: %q is not name=address", n)
		}
		o.nodes = append(o.nodes, node{name: name, addrs: strings.Split(addrs, "+")})
	}
	return o, nil
}

func prefixes(name, list string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, s := range split(list) {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, p.Masked())
	}
	if len(all) == 0 || len(all) > 2 || len(all) == 2 && all[0].Addr().Is4() == all[1].Addr().Is4() {
		return nil, fmt.Errorf("%s: %q is not one prefix, or one of each family", name, list)
	}
	return all, nil
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

func joined(prefixes []netip.Prefix) string {
	var s []string
	for _, p := range prefixes {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}
