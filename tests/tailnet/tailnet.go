package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"tailscale.com/derp/derpserver"
	"tailscale.com/ipn"
)

const pollMilliseconds = 2

// A tailnet is the control server, the DERP server and the nodes that run.
type tailnet struct {
	directory string
	derp      *derpserver.Server
	control   *control
	running   map[string]*node
}

func newTailnet(directory string) *tailnet {
	derp, derpMap := serveDERP()
	return &tailnet{directory: directory, derp: derp, control: serveControl(derpMap), running: map[string]*node{}}
}

func (t *tailnet) obey(ctx context.Context, c command) error {
	if c.Do == "add" {
		return t.add(ctx, c)
	}
	d := t.control.byName(c.Name)
	if d == nil {
		return errors.New("no such node")
	}
	switch c.Do {
	case "start":
		return t.start(ctx, d)
	case "stop":
		return t.stop(c.Name)
	case "rotate":
		return t.rotate(ctx, d)
	case "remove":
		t.control.change(func() { d.removed = true })
	case "online":
		t.control.change(func() { d.online = c.Value })
	case "expire":
		return t.expire(ctx, d, c.Value != nil && *c.Value)
	case "hide":
		return t.hide(ctx, d, c.Value != nil && *c.Value)
	case "rename":
		t.control.change(func() { d.label = c.DNSLabel })
	case "block":
		t.control.change(func() { d.blocks = slices.Clone(c.From) })
	default:
		return errors.New("no such command")
	}
	return nil
}

func (t *tailnet) add(ctx context.Context, c command) error {
	if before := t.control.byName(c.Name); before != nil {
		if !before.removed {
			return errors.New("there is one already")
		}
		if err := t.clear(c.Name); err != nil {
			return err
		}
	}
	if c.HostName == "" {
		c.HostName = c.Name
	}
	d := &device{name: c.Name, label: c.Name, hostName: c.HostName, login: c.Login, tags: c.Tags}
	t.control.expect(d)
	return t.start(ctx, d)
}

func (t *tailnet) start(ctx context.Context, d *device) error {
	if t.running[d.name] != nil {
		return errors.New("it runs")
	}
	t.control.change(func() { d.noted = false })
	n, err := startNode(ctx, d.name, d.hostName, t.socket(d.name), t.state(d.name), t.control.BaseURL())
	if err != nil {
		return err
	}
	t.running[d.name] = n
	if err := t.control.until(ctx, func() bool { return d.joined && d.noted && d.polls > 0 }); err != nil {
		return err
	}
	return t.acquaint(ctx, d)
}

// acquaint waits until a node can be reached, and it and the others that run know each other. Packets sent
// before that are lost, and WireGuard tries again only after 5 s.
func (t *tailnet) acquaint(ctx context.Context, d *device) error {
	for !t.derp.IsClientConnectedForTest(t.control.keyOf(d)) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("it does not connect to DERP: %w", err)
		}
		time.Sleep(pollMilliseconds * time.Millisecond)
	}
	for name, other := range t.running {
		with := t.control.byName(name)
		if with == d || !t.control.mayMeet(d, with) {
			continue
		}
		if err := t.running[d.name].untilKnows(ctx, t.control.keyOf(with)); err != nil {
			return fmt.Errorf("it does not know %s: %w", name, err)
		}
		if err := other.untilKnows(ctx, t.control.keyOf(d)); err != nil {
			return fmt.Errorf("%s does not know it: %w", name, err)
		}
	}
	return nil
}

func (t *tailnet) stop(name string) error {
	n := t.running[name]
	if n == nil {
		return errors.New("it does not run")
	}
	delete(t.running, name)
	return n.stop()
}

// rotate has a node log in again, which gives it a new node key.
func (t *tailnet) rotate(ctx context.Context, d *device) error {
	n := t.running[d.name]
	if n == nil {
		return errors.New("it does not run")
	}
	before := t.control.keyOf(d)
	if err := n.client.StartLoginInteractive(ctx); err != nil {
		return err
	}
	if err := t.control.until(ctx, func() bool { return d.node.Key != before }); err != nil {
		return fmt.Errorf("its key has not changed: %w", err)
	}
	if err := n.until(ctx, ipn.Running); err != nil {
		return err
	}
	return t.acquaint(ctx, d)
}

func (t *tailnet) expire(ctx context.Context, d *device, expired bool) error {
	t.control.change(func() { d.expired = expired })
	n := t.running[d.name]
	if n == nil {
		return nil
	}
	if expired {
		return n.until(ctx, ipn.NeedsLogin)
	}
	if err := n.until(ctx, ipn.Running); err != nil {
		return err
	}
	return t.acquaint(ctx, d)
}

// hide keeps a node from the others, which forget it, or has them told of it as of a new one.
func (t *tailnet) hide(ctx context.Context, d *device, hidden bool) error {
	t.control.change(func() { d.hidden = hidden })
	if hidden || t.running[d.name] == nil {
		return nil
	}
	return t.acquaint(ctx, d)
}

// clear takes away what is left of a node that was removed, for another of its name.
func (t *tailnet) clear(name string) error {
	if t.running[name] != nil {
		if err := t.stop(name); err != nil {
			return err
		}
	}
	return os.RemoveAll(t.state(name))
}

func (t *tailnet) facts(name string) answer {
	facts := t.control.facts(name)
	facts.Socket = t.socket(name)
	return facts
}

func (t *tailnet) socket(name string) string { return filepath.Join(t.directory, name+".sock") }

func (t *tailnet) state(name string) string { return filepath.Join(t.directory, name) }
