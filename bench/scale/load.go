package scale

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"tapestry.dev/tapestry/kube/manifests"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/services"
)

// load measures how long a cluster with many Services takes to load: in an agent from its start, and step by step in
// this process.
func load(ctx context.Context, o Options, count int, name string, f *figures) error {
	n, p, err := talkingNode(ctx, o)
	if err != nil {
		return err
	}
	defer n.close()
	empty, err := n.memory()
	if err != nil {
		return err
	}
	if err := writeCluster(n.manifests, count, o.Endpoints); err != nil {
		return err
	}
	for range o.Rounds {
		n.kill()
		took, err := firstAnswer(ctx, n, p)
		if err != nil {
			return err
		}
		f.add(name+" first packet", "agent", "ms", milliseconds(took))
		if err := n.settle(ctx); err != nil {
			return err
		}
		full, err := n.memory()
		if err != nil {
			return err
		}
		f.add(name+" RSS", "agent", "MB", megabytes(full.rss-empty.rss))
	}
	n.kill()
	for range o.Rounds {
		if err := loadHere(n.manifests, name, f); err != nil {
			return err
		}
	}
	return nil
}

// firstAnswer returns the time from the start of an agent to the first answer through the Service that is read last.
func firstAnswer(ctx context.Context, n *node, p *talk) (time.Duration, error) {
	if err := p.redial(); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := n.start(); err != nil {
		return 0, err
	}
	at, err := p.await(ctx, p.servers[0].addr, begin)
	if err != nil {
		return 0, fmt.Errorf("%w; the agent says:\n%s", err, n.said())
	}
	return at.Sub(begin), n.ready(ctx)
}

// loadHere carries the agent's steps out in this process, one by one.
func loadHere(dir, name string, f *figures) error {
	before := heap()
	begin := time.Now()
	objs, err := manifests.Read(dir)
	if err != nil {
		return err
	}
	read := time.Now()
	result := translate.Translate(objs, translate.Options{Node: nodeName})
	translated := time.Now()
	table, _ := services.NewTable(result.Services)
	compiled := time.Now()
	f.add(name+" read", "steps", "ms", milliseconds(read.Sub(begin)))
	f.add(name+" translate", "steps", "ms", milliseconds(translated.Sub(read)))
	f.add(name+" table", "steps", "ms", milliseconds(compiled.Sub(translated)))
	f.add(name+" heap", "steps", "MB", megabytes(heap()-before))
	runtime.KeepAlive(objs)
	runtime.KeepAlive(table)
	return nil
}

// heap returns the live memory of the heap, in bytes.
func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
