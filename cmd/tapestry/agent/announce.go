package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/tapestry/agent/announcing"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/share/descriptors"
)

// announceConfig holds the values of the flags about announcers.
type announceConfig struct {
	texts  cli.StringSlice
	socket string
	uids   cli.IntSlice

	kinds []announcing.Kind
}

func (c *announceConfig) flags() []cli.Flag {
	const category = "Announcing addresses of load balancers"
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "announce", Category: category, Usage: "this node has the announcer of `KIND`, l2 or bgp; repeatable", Destination: &c.texts},
		&cli.StringFlag{Name: "announce-socket", Category: category, Usage: "`SOCKET` on which announcers ask what to announce", Destination: &c.socket},
		&cli.IntSliceFlag{Name: "announce-uid", Category: category, Usage: "`UID` of the announcer of BGP, besides root and this process's user; repeatable", Destination: &c.uids},
	}
}

// parse checks the values of the flags.
func (c *announceConfig) parse() error {
	for _, text := range c.texts.Value() {
		k := announcing.Kind(text)
		if k != announcing.L2 && k != announcing.BGP {
			return fmt.Errorf("--announce %q is no way to announce addresses: expected l2 or bgp", text)
		}
		c.kinds = append(c.kinds, k)
	}
	if (len(c.kinds) > 0) != (c.socket != "") {
		return fmt.Errorf("--announce and --announce-socket belong together: give both or neither")
	}
	for _, uid := range c.uids.Value() {
		if uid < 0 || int64(uid) > 1<<32-2 {
			return fmt.Errorf("--announce-uid %d is not the number of a user", uid)
		}
	}
	return nil
}

// users returns who may be the announcer of a kind. That of ARP and NDP has a capability, and so is root.
func (c *announceConfig) users() map[announcing.Kind][]uint32 {
	l2 := []uint32{0, uint32(os.Geteuid())}
	bgp := slices.Clone(l2)
	for _, uid := range c.uids.Value() {
		bgp = append(bgp, uint32(uid))
	}
	return map[announcing.Kind][]uint32{announcing.L2: l2, announcing.BGP: bgp}
}

// newAnnouncing returns the agent's side of what is announced to the network outside.
func (a *agent) newAnnouncing() *announcing.Announcing {
	return announcing.New(announcing.Options{
		Name: a.node, Kinds: a.announce.kinds, Users: a.announce.users(), Plan: a.follower.Plan, Unfit: func() string { return a.healer.Unfit() },
		NodeAddrs: func() []netip.Addr { return a.follower.Node().Config().Netstack.NodeAddrs },
		Node: func() announcing.Node {
			if !a.follower.HasStarted() {
				return nil
			}
			return a.follower.Node()
		},
	})
}

// serveAnnouncers serves the socket of announcers until ctx is done. If it cannot be opened, only announcements are
// missing.
func (a *agent) serveAnnouncers(ctx context.Context) {
	if a.announce.socket == "" {
		return
	}
	o := localapi.Options{UIDs: slices.Concat(slices.Collect(maps.Values(a.announce.users()))...), Most: a.plan.Of(descriptors.Local), Log: a.log}
	l, err := localapi.Listen(a.announce.socket, o)
	if err == nil {
		err = a.outside.Server(o).Serve(ctx, l)
	}
	if err != nil && ctx.Err() == nil {
		a.log.Error("announcers cannot ask this agent, so nothing is announced; choose another socket with --announce-socket", "err", err)
	}
}
