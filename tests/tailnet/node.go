package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/ipn"
	"tailscale.com/tsnet"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

const closeSeconds = 5

// A node is one machine of the tailnet. Its LocalAPI, which tsnet serves in memory only, is on a unix socket.
type node struct {
	server   *tsnet.Server
	client   *local.Client
	listener net.Listener
	closing  chan struct{}
	relaying sync.WaitGroup
}

func startNode(ctx context.Context, name, hostName, socket, state, controlURL string) (*node, error) {
	n := &node{closing: make(chan struct{}), server: &tsnet.Server{
		Dir:        state,
		Hostname:   hostName,
		ControlURL: controlURL,
		Logf:       logger.WithPrefix(log.Printf, name+": "),
		UserLogf:   logger.Discard,
	}}
	client, err := n.server.LocalClient() // starts it
	if err != nil {
		return nil, err
	}
	n.client = client
	if err := n.until(ctx, ipn.Running); err != nil {
		n.server.Close()
		return nil, err
	}
	if n.listener, err = net.Listen("unix", socket); err != nil {
		n.server.Close()
		return nil, err
	}
	go n.accept()
	return n, nil
}

// stop ends the node as if its daemon had been stopped; its state stays.
func (n *node) stop() error {
	n.listener.Close()
	close(n.closing)
	n.relaying.Wait()
	closed := make(chan error, 1)
	go func() { closed <- n.server.Close() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(closeSeconds * time.Second):
		// a magicsock without UDP that has had to rebind never closes; the control server is left before that
		return nil
	}
}

func (n *node) until(ctx context.Context, wanted ipn.State) error {
	watcher, err := n.client.WatchIPNBus(ctx, ipn.NotifyInitialState)
	if err != nil {
		return err
	}
	defer watcher.Close()
	state := ipn.NoState
	for {
		notify, err := watcher.Next()
		if err != nil {
			return fmt.Errorf("its state is %v, not yet %v: %w", state, wanted, err)
		}
		if notify.State != nil {
			state = *notify.State
		}
		if state == wanted {
			return nil
		}
	}
}

// untilKnows waits until the node could send to the one with this key.
func (n *node) untilKnows(ctx context.Context, nodeKey key.NodePublic) error {
	for {
		status, err := n.client.Status(ctx)
		if err != nil {
			return err
		}
		if peer := status.Peer[nodeKey]; peer != nil && peer.InMagicSock {
			return nil
		}
		time.Sleep(pollMilliseconds * time.Millisecond)
	}
}

func (n *node) accept() {
	for {
		conn, err := n.listener.Accept()
		if err != nil {
			return
		}
		n.relaying.Go(func() { n.relay(conn) })
	}
}

// relay carries one connection, byte for byte. The connection in memory cannot be closed by halves, so when
// either side has said all, so has the other.
func (n *node) relay(outside net.Conn) {
	defer outside.Close()
	inside, err := n.client.Dial(context.Background(), "tcp", "local-tailscaled.sock:80")
	if err != nil {
		return
	}
	defer inside.Close()
	done := make(chan struct{}, 2)
	carry := func(to io.Writer, from io.Reader) {
		_, _ = io.Copy(to, from)
		done <- struct{}{}
	}
	go carry(inside, outside)
	go carry(outside, inside)
	select {
	case <-done:
	case <-n.closing:
	}
}
